"""What a file is sealed with besides its samples' content hashes: scales, attributes, provenance."""
