rule judge:
    """Decide the claims of a study from what was measured."""
    input:
        lambda wildcards: lookups.inputs("judge", wildcards),
    output:
        manifest=plan.pattern("judge"),
    log:
        lookups.log("judge"),
    conda:
        "../envs/report.yaml"
    threads: 1
    resources:
        **lookups.resources("judge"),
    params:
        *lookups.triggers.params("judge"),
        arguments=lambda wildcards, input: lookups.arguments("judge", wildcards),
    shell:
        "ropewalk judge {params.arguments} 2>&1 | tee {log:q}"


rule report:
    """Write the pages and report.json from the judged studies."""
    input:
        lambda wildcards: lookups.inputs("report", wildcards),
    output:
        manifest=plan.pattern("report"),
    log:
        lookups.log("report"),
    conda:
        "../envs/report.yaml"
    threads: 1
    resources:
        **lookups.resources("report"),
    params:
        *lookups.triggers.params("report"),
        arguments=lambda wildcards, input: lookups.arguments("report", wildcards),
    shell:
        "ropewalk report {params.arguments} 2>&1 | tee {log:q}"


for study in plan.study_names:

    rule:
        """One study: its verdicts and everything below them."""
        name:
            study
        input:
            plan.manifests(study),
