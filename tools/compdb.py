#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
"""Prints a compilation database: compdb.py 'CC FLAGS' FILE..."""
import json
import os
import sys

command, files = sys.argv[1], sys.argv[2:]
here = os.getcwd()
json.dump([{"directory": here, "file": f, "command": f"{command} -c {f}"} for f in files], sys.stdout, indent=1)
