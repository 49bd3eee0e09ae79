"""`python -m subquad`."""

from subquad.cli import main

if __name__ == "__main__":
    main()
