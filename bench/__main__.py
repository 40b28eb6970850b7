"""`python -m bench`: as `holdbook bench`, also one row at a time."""

import argparse

from bench.main import run

if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="bench", description=run.__doc__)
    parser.add_argument("--json", action="store_true", dest="as_json")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--curve", action="store_true", default=None, dest="with_curve")
    parser.add_argument("--only", default="", metavar="TEXT", help="rows whose name holds this text")
    run(**vars(parser.parse_args()))
