"""The command line: one file per command, each joins the options to one library call."""
