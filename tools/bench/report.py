# SPDX-License-Identifier: Apache-2.0
"""From rounds to medians, verdicts, a table for the terminal, one in Markdown and a page with plots."""
import html
import statistics

from . import loads

LOADS = {x.key: x for x in loads.LOADS}
CAVEAT = (
    "CPU s/GB is the whole machine's busy time less the load generator, the origin, this program and foreign processes, so kernel "
    "workers count for the proxy. Over loopback and veth the kernel runs the receiving side's TCP work, a sockmap program included, in the "
    "sender's context, so part of every proxy's receive work is charged to the origin: \"whole machine\" counts everybody, and "
    "\"added to no proxy\" is that less what the same load costs without a proxy. GB is 10^9 bytes.")


def moved_text(moved, before=""):
    """Which engine moved the bytes: "sockmap 97%, copy 3%"."""
    total = sum(moved.values()) if moved else 0
    if not total:
        return ""
    parts = sorted(((v / total, k) for k, v in moved.items() if v), reverse=True)
    return before + ", ".join(f"{k} {100 * share:.{0 if share > 0.01 else 2}f}%" for share, k in parts)


def _limit(goal, results):
    if goal.metric in (loads.HELD, loads.MEMORY):
        return loads.stall_bound_mb(results["about"]["window_bytes"], goal.metric)
    return goal.limit


def _judge(goal, table, judged, results):
    key, up = goal.metric.key, goal.metric.higher_is_better
    out = {"text": goal.text(), "metric": key, "verdict": "UNKNOWN"}
    mine = table.get(judged, {}).get(key)
    if not mine:
        if table.get(judged, {}).get("failed"):
            out["verdict"] = "MISS"
        return out
    out["value"] = mine["median"]
    limit = _limit(goal, results)
    if limit:
        out["text"] = f"{'>=' if up else '<='} {limit:.4g} {goal.metric.title}"
    else:
        others = [table[v][key]["median"] for v in goal.versus if key in table.get(v, {})]
        if not others:
            return out
        best = max(others) if up else min(others)
        out["ratio"] = mine["median"] / best if best else 0
        limit = goal.factor * best
    out["limit"] = limit
    out["verdict"] = "PASS" if (mine["median"] >= limit if up else mine["median"] <= limit) else "MISS"
    return out


def summarise(results):
    """Adds results["summary"]: {load: {"table": {proxy: {metric: {median, low, high}}}, "goals": [...]}}."""
    summary = {}
    for key, got in results["loads"].items():
        load, table = LOADS[key], {}
        for who, rounds in got.items():
            good = [r for r in rounds if "failed" not in r]
            table[who] = row = {"rounds": len(good), "failed": len(rounds) - len(good)}
            if not good:
                continue
            for m in load.metrics:
                values = [r[m.key] for r in good if m.key in r]
                if values:
                    row[m.key] = {"median": statistics.median(values), "low": min(values), "high": max(values), "all": values}
            moved = {}
            for r in good:
                for e, n in (r.get("moved") or {}).items():
                    moved[e] = moved.get(e, 0) + n
            row["moved"] = moved
            row["noise"] = max(r["noise"] for r in good)
        floor = table.get("direct", {}).get("total_per_gb", {}).get("median")
        for row in table.values():
            if floor is not None and "total_per_gb" in row:
                t = row["total_per_gb"]
                row["added_per_gb"] = {**{k: t[k] - floor for k in ("median", "low", "high")}, "all": [v - floor for v in t["all"]]}
        summary[key] = {"title": load.title, "table": table,
                        "goals": [_judge(g, table, results["judged"], results) for g in load.goals]}
    results["summary"] = summary


def _number(v, m):
    return f"{v:,.{m.digits}f}"


def _cell(row, m):
    if m.key not in row:
        return "-"
    f = row[m.key]
    text = _number(f["median"], m)
    if len(f["all"]) > 1:
        text += f" ({_number(f['low'], m)}-{_number(f['high'], m)})"
    return text


def _rows(key, results):
    """Header and rows of a load's table, as text."""
    s, load = results["summary"][key], LOADS[key]
    main = load.metrics[0]
    base = s["table"].get("haproxy", {}).get(main.key, {}).get("median")
    head = ["proxy"] + [m.title for m in load.metrics] + ["x HAProxy", "moved by", "noise"]
    rows = []
    for who, row in s["table"].items():
        ratio = f"{row[main.key]['median'] / base:.2f}" if base and main.key in row else "-"
        note = f"{row['noise']:.2f}" if "noise" in row else ""
        if row["failed"]:
            note += f" {row['failed']} FAILED"
        rows.append([results["labels"][who]] + [_cell(row, m) for m in load.metrics] + [ratio, moved_text(row.get("moved")) or "-", note])
    return head, rows


def _goal_rows(results):
    head = ["work", "goal", "no proxy", "HAProxy", "nginx", "sluice", "ratio", "verdict"]
    rows = []
    for key, s in results["summary"].items():
        for g in s["goals"]:
            m = next(m for m in LOADS[key].metrics if m.key == g["metric"])

            def of(who):
                row = s["table"].get(who, {})
                return _number(row[m.key]["median"], m) if m.key in row else "-"
            rows.append([f"{key}: {s['title']}", g["text"], of("direct"), of("haproxy"), of("nginx"), of(results["judged"]),
                         f"{g['ratio']:.2f}" if "ratio" in g else "-", g["verdict"]])
    return head, rows


def _plain_table(head, rows):
    width = [max(len(r[i]) for r in [head] + rows) for i in range(len(head))]
    return "\n".join("  ".join(c.ljust(w) for c, w in zip(r, width)).rstrip() for r in [head, ["-" * w for w in width]] + rows)


def _markdown_table(head, rows):
    return "\n".join("| " + " | ".join(r) + " |" for r in [head, ["---"] * len(head)] + rows)


def _about(results):
    a = results["about"]
    return (f"{a['network'].capitalize()}; Linux {a['kernel']}, {a['processors']} x {a['cpu']}, {a['congestion_control']}; {a['haproxy']}; {a['nginx']}; {a['sluice']}"
            f"{' with splice ' + str(a['splice']) if a['splice'] else ''}; {a['rounds']} rounds of {a['window_seconds']:g} s, medians"
            f" (lowest-highest); tcp_rmem/tcp_wmem to {a['tcp_buffers'][0] >> 20}/{a['tcp_buffers'][1] >> 20} MiB.")


def plain(results):
    out = [""]
    for key, s in results["summary"].items():
        out += [f"{key}: {s['title']}", _plain_table(*_rows(key, results)), ""]
    head, rows = _goal_rows(results)
    if rows:
        out += ["Goals", _plain_table(head, rows), ""]
    return "\n".join(out + [_about(results), CAVEAT])


def markdown(results):
    out = ["# Figures", "", _about(results), "", CAVEAT, ""]
    head, rows = _goal_rows(results)
    if rows:
        out += ["## Goals", "", _markdown_table(head, rows), ""]
    for key, s in results["summary"].items():
        out += [f"## {key}: {s['title']}", "", _markdown_table(*_rows(key, results)), ""]
    return "\n".join(out)


# ---- the page ----

COLOURS = {"direct": "#9aa5b1", "haproxy": "#4c78a8", "nginx": "#5b9a5b"}
STYLE = """
body{font:15px/1.5 system-ui,sans-serif;margin:2rem auto;max-width:84rem;padding:0 1rem;color:#1f2933;background:#fff}
h1{font-size:1.6rem;margin:0 0 .3rem}h2{font-size:1.15rem;margin:2.2rem 0 .4rem}p.small{color:#52606d;font-size:.87rem}
table{border-collapse:collapse;font-size:.86rem;width:100%}td,th{padding:.25rem .6rem;border-bottom:1px solid #e4e7eb;text-align:right;
font-variant-numeric:tabular-nums}td:first-child,th:first-child{text-align:left}th{color:#52606d;font-weight:600}
.plots{display:grid;grid-template-columns:repeat(auto-fit,minmax(25rem,1fr));gap:.4rem 1.5rem}svg{width:100%;height:auto}
svg text{font:12px system-ui,sans-serif;fill:#1f2933}svg .quiet{fill:#7b8794}.PASS{color:#1b7a3d;font-weight:700}.MISS{color:#b42318;font-weight:700}
.wide{overflow-x:auto}#goals td{text-align:left}#goals th{text-align:left}
"""


def _plot(key, m, results):
    """Bars are medians, dots are rounds, the line is the goal."""
    s = results["summary"][key]
    rows = [(who, row) for who, row in s["table"].items() if m.key in row]
    if not rows:
        return ""
    goal = next((g for g in s["goals"] if g["metric"] == m.key and "limit" in g), None)
    top = max([row[m.key]["high"] for _, row in rows] + [goal["limit"] if goal else 0, 1e-9])
    if goal and goal["limit"] > 4 * max(row[m.key]["high"] for _, row in rows):
        top, goal = max(row[m.key]["high"] for _, row in rows) or 1e-9, None  # far off: the line would squeeze the bars
    left, right, step, y0 = 138, 560, 26, 26
    wide = right - left - 70

    def x(v):
        return left + wide * max(v, 0) / top
    tall = y0 + step * len(rows) + (22 if goal else 6)
    out = [f'<svg viewBox="0 0 {right} {tall}" role="img" aria-label="{html.escape(s["title"] + ", " + m.title)}">',
           f'<text x="0" y="14" font-weight="600">{html.escape(m.title)}</text>'
           f'<text x="{right}" y="14" text-anchor="end" class="quiet">{"more" if m.higher_is_better else "less"} is better</text>']
    for i, (who, row) in enumerate(rows):
        f, y = row[m.key], y0 + i * step
        colour = COLOURS.get(who, "#d97a1f" if who == results["judged"] else "#e9b27c")
        out.append(f'<text x="{left - 8}" y="{y + 15}" text-anchor="end">{html.escape(results["labels"][who])}</text>'
                   f'<rect x="{left}" y="{y + 3}" width="{max(x(f["median"]) - left, 1):.1f}" height="17" rx="2" fill="{colour}"/>')
        if len(f["all"]) > 1:
            out += [f'<circle cx="{x(v):.1f}" cy="{y + 11.5}" r="2.6" fill="#1f2933" fill-opacity=".55"/>' for v in f["all"]]
        out.append(f'<text x="{x(f["high"]) + 7:.1f}" y="{y + 15}">{_number(f["median"], m)}</text>')
    if goal:
        gx = x(goal["limit"])
        out.append(f'<line x1="{gx:.1f}" x2="{gx:.1f}" y1="{y0 - 2}" y2="{tall - 16}" stroke="#b42318" stroke-dasharray="4 3"/>'
                   f'<text x="{gx:.1f}" y="{tall - 4}" text-anchor="middle" class="quiet">goal {_number(goal["limit"], m)}</text>')
    return "\n".join(out) + "</svg>"


def _html_table(head, rows, ident=""):
    def cell(c):
        return f'<td class="{c}">{c}</td>' if c in ("PASS", "MISS") else f"<td>{html.escape(c)}</td>"
    return (f'<div class="wide"><table{ident}><tr>' + "".join(f"<th>{html.escape(h)}</th>" for h in head) + "</tr>" +
            "".join("<tr>" + "".join(map(cell, r)) + "</tr>" for r in rows) + "</table></div>")


def page(results):
    out = ["<!doctype html><html lang=en><meta charset=utf-8><meta name=viewport content='width=device-width'>"
           f"<title>sluice: figures</title><style>{STYLE}</style><h1>sluice beside HAProxy and nginx</h1>",
           f'<p class="small">{html.escape(_about(results))}</p>']
    head, rows = _goal_rows(results)
    if rows:
        out += ["<h2>Goals</h2>", _html_table(head, rows, " id=goals")]
    for key, s in results["summary"].items():
        out += [f"<h2>{key}: {html.escape(s['title'])}</h2>", '<div class="plots">']
        out += [_plot(key, m, results) for m in LOADS[key].metrics]
        out += ["</div>", _html_table(*_rows(key, results))]
    return "\n".join(out + [f'<p class="small">{html.escape(CAVEAT)}</p></html>'])
