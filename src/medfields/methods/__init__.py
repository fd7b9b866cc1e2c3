"""The papers: one file each, and no file imports another."""
