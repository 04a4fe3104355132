"""`python -m diffuse` is the command `diffuse`."""

from diffuse.cli import main

if __name__ == "__main__":
    main()
