"""What the rows of `toc_cli.ops.criterion.CRITERIA` compute, a file per kind."""
