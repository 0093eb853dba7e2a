"""Papers as data: YAML to specs, scales, axes, provenance classes, the plan of a configuration."""
