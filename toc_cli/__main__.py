"""`python -m toc_cli`: the same program as `toc`."""

from toc_cli.commands import main

if __name__ == "__main__":
    main()
