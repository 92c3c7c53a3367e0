"""What another tool dumped, brought into a store: from OUT_DIR with attn_maps.pt and tokens.json to sealed samples."""
