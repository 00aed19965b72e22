"""`python -m demo`: see demo/walk.py."""
from demo.walk import build_parser, main
from utils.cli import run_command

if __name__ == "__main__":
    run_command(main, build_parser())
