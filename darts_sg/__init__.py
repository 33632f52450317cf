"""darts_sg: differentiable architecture search with the sandglass block.

>>> from darts_sg import load_genotype
>>> load_genotype("DARTS_V2").normal.num_nodes
4
"""

from darts_sg.genotype import Cell, Edge, Genotype, load_genotype

__all__ = ["Cell", "Edge", "Genotype", "load_genotype"]
