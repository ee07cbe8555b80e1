"""Run the command line as ``python -m pplgen``."""

from pplgen.cli import main

main()
