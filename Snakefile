# Ropewalk: five long-context papers, from raw text to a reproducibility report.
#
# Path grammar (every stage leaves a manifest.json in its folder):
#   results/data/inventories/{source}                            files of a source
#   results/data/tokenizers/{tokenizer}                          a tokenizer
#   results/data/tokens/{corpus}/{tokenizer}/parts/{part}        tokens of a part, in Arrow shards
#   results/data/tokens/{corpus}/{tokenizer}                     the parts together
#   results/data/windows/{windows}/{length}                      training windows, as an index
#   results/<name>/calibrations/{study}/{calibration}            seconds and memory of steps
#   results/<name>/runs/{study}/{run}                            weights, snapshots, metrics
#   results/<name>/evaluations/{study}/{evaluation}/{run_study}/{run}
#   results/<name>/checks/{study}/{check}                        exact checks of theory
#   results/<name>/judged/{study}                                claims with verdicts
#   results/<name>/report                                        index.html, report.json
# <name> is the scale unless config.yaml names another; corpora and tokens are shared by all.

from snakemake.utils import min_version

min_version("9.27")


configfile: "config.yaml"


report: "rules/report.rst"


include: "rules/common.smk"
include: "rules/corpus.smk"
include: "rules/tokenize.smk"
include: "rules/pack.smk"
include: "rules/train.smk"
include: "rules/evaluate.smk"
include: "rules/report.smk"


rule all:
    """Everything: the report of all chosen studies, and every artifact below it."""
    default_target: True
    input:
        plan.manifests(),
