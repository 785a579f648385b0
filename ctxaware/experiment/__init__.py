"""The whole experiment as one workflow: `experiment.yaml` → steps, each a command → Snakemake."""
