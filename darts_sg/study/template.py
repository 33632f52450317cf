"""The file that `study new` writes: complete, commented, and small enough to try."""

TEMPLATE = """\
# A study: spaces x methods x seeds, searched, retrained and compared.
#   python -m darts_sg study plan FILE               what will run, how long it takes, and what is wrong with it
#   python -m darts_sg study run FILE --dir STUDY    run it; the same command continues it after any interruption
title: TITLE

data:                            # options of all jobs
  dataset: synthetic             # rendered images, to try the file; then: cifar10, folder, imagenet, ...
  # data: data                   # the folder of the data set

search:                          # options of all searches: those of `search.py --help`, with underscores
  epochs: 2
  channels: 4
  cells: 4
  nodes: 3
  train_images: 256
  validation_images: 256

retrain:                         # options of all retrainings: those of `augment.py --help`; leave it out to search only
  recipe: demo
  epochs: 2
  train_images: 512

spaces: [darts, darts+sandglass] # or NAME: {space: darts+sandglass, genotype: "SG_{method}_{seed}"}

methods:                         # NAME: a recipe, and options over it
  first: {recipe: darts-first}
  gumbel: {recipe: gumbel}

# sweep:                         # every method with every combination of these values
#   alpha_learning_rate: [3.0e-4, 3.0e-3]

seeds:                           # add a seed later and run again: only what is new will run
  search: [0, 1]
  retrain: [0]

genotypes:
  name: "{space}_{method}_s{seed}"
  # plain: false                 # do not retrain the genotypes by the usual rule
  # bounded: {max_params: 2.45M} # one more of each search: the best within bounds (max_params, max_macs, max_skips)
  random: {count: 1}             # random genotypes of each space, for comparison
  references: [DARTS_V2]         # genotypes of the zoo

compare:                         # errors of the first minus errors of the second: methods, spaces or genotypes
  correction: holm
  pairs:
    - [darts+sandglass, darts]
    - [gumbel, first]

claims:                          # evaluated exactly as they are written here, before the runs
  sandglass_is_smaller:
    of: darts+sandglass
    against: darts
    conditions:
      fewer_parameters: {percent: 25, than: DARTS_V2}
      no_worse: {points: 0.3}    # the 95% interval of the difference excludes being worse by this much
      # better: {points: 0.0}    # the whole interval is on the better side of this

executor:
  retries: 2                     # how often a failed job is started again
  # threads: 1                   # CPU threads of a job; default: cores / jobs at a time
  # memory: 4G                   # of a job; default: what jobs like it have taken
  # minutes: 55                  # a job saves and queues again after this time, such as below a Slurm limit
  # slurm: {partition: gpu, account: me}
"""
