"""`python -m diffuse` is the command `diffuse`."""

from diffuse.cli.main import main

if __name__ == "__main__":
    main()
