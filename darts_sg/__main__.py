"""python -m darts_sg, installed as darts-sg."""

from darts_sg.cli.main import PROG, main, run

__all__ = ["PROG", "main", "run"]

if __name__ == "__main__":
    main()
