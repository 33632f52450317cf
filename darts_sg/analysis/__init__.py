"""Costs, pictures and reports of networks and runs."""

import logging
import os
import sys

from darts_sg.errors import quoted

if "MPLBACKEND" in os.environ and "matplotlib" not in sys.modules:
    # matplotlib cannot be imported while the variable names no backend; pictures are written to files and need none
    given = os.environ.pop("MPLBACKEND")
    import matplotlib

    try:
        matplotlib.rcParams["backend"] = given
        os.environ["MPLBACKEND"] = given
    except ValueError:
        logging.getLogger(__name__).warning("MPLBACKEND=%s is no backend of matplotlib and is ignored", quoted(given))
