"""``python -m minerva``: the same as the ``minerva`` command."""

from minerva.cli.main import main

if __name__ == "__main__":
    main()
