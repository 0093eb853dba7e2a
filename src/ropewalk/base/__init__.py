"""What every room stands on: canonical data, safe files, manifests, addressed randomness."""
