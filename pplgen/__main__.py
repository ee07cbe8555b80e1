"""Run the command line as ``python -m pplgen``."""

from pplgen.cli.main import main

main()
