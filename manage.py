#!/usr/bin/env python
"""The program `vbatch`, from a checkout."""

from vbatch_site.__main__ import main

if __name__ == "__main__":
    main()
