# SPDX-License-Identifier: Apache-2.0
"""Dictionaries and lists as block YAML, as a person would write it."""
import json
import re

_PLAIN = re.compile(r"^[A-Za-z0-9/][A-Za-z0-9_./+-]*$")


def _scalar(v):
    if v is True or v is False:
        return "true" if v else "false"
    if isinstance(v, (int, float)):
        return str(v)
    v = str(v)
    return v if _PLAIN.match(v) else json.dumps(v)


def dump(v, indent=0):
    pad = "  " * indent
    out = []
    if isinstance(v, dict):
        for key, value in v.items():
            if isinstance(value, (dict, list)) and value:
                out.append(f"{pad}{key}:\n{dump(value, indent + 1)}")
            elif isinstance(value, dict):
                out.append(f"{pad}{key}: {{}}\n")
            elif isinstance(value, list):
                out.append(f"{pad}{key}: []\n")
            else:
                out.append(f"{pad}{key}: {_scalar(value)}\n")
        return "".join(out)
    for item in v:
        if isinstance(item, (dict, list)):
            text = dump(item, indent + 1)
            out.append(pad + "- " + text[len(pad) + 2:])
        else:
            out.append(f"{pad}- {_scalar(item)}\n")
    return "".join(out)
