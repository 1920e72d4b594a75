"""The results of all processors as the tables of docs/speed.md.

    python benchmarks/report.py

Reads benchmarks/results/KIND/NAME.json. `ours` is the fastest engine that `upscale.py` and training
choose by themselves, in float32.
"""

import json

from common import RESULTS

# What is timed: title, file, what selects its rows, the key of the time.
TASKS = [
    *((f"training LapSRN x{scale}", "train_lapsrn", {"scale": scale}, "step_seconds") for scale in (2, 4)),
    *((f"training SRGAN, {phase}, HR {hr}", "train_srgan", {"phase": phase, "hr": hr}, "step_seconds")
      for phase in ("warm-up", "adversarial") for hr in (48, 96)),
    ("training SRMAP, HR 96", "srmap_step", {}, "step_seconds"),
    ("training pixel recursive", "train_pixel_recursive", {}, "step_seconds"),
    *((f"LapSRN, 640 x 360 to x{scale}", "upscale", {"scale": scale}, "seconds") for scale in (2, 4)),
    *((f"SRGAN, 640 x 360 to x{scale}", "upscale_srgan", {"scale": scale}, "seconds") for scale in (2, 4)),
    *((f"SRMAP {size}, {'with' if noise else 'without'} noise", f"srmap_{size}", {"noise": noise}, "seconds")
      for size in ("reduced", "full") for noise in (True, False)),
]
OURS = {"openvino float32": " (OpenVINO)", "keras float32": ""}


def line(title, rows, key):
    """One row of the table, or None where nothing was measured."""
    seconds = {row["engine"]: row[key] for row in rows if key in row}
    ours = min((name for name in OURS if name in seconds), key=seconds.get, default=None)
    rivals = {name: time for name, time in seconds.items() if "torch" in name and "bfloat16" not in name}
    if ours is None or not rivals:
        return None
    best = min(rivals, key=rivals.get)
    half, rival = (min((time for name, time in seconds.items() if whose in name and "bfloat16" in name),
                       default=None) for whose in ("keras", "torch"))
    return (f"| {title} | {seconds[ours]:.3f} s{OURS[ours]} "
            f"| {rivals[best]:.3f} s ({best.removeprefix('torch ')}) | {rivals[best] / seconds[ours]:.2f} "
            f"| {f'{half:.3f} s' if half else '-'} | {f'{rival:.3f} s' if rival else '-'} "
            f"| {f'{rival / half:.2f}' if half and rival else '-'} |")


def main():
    for folder in sorted(RESULTS.iterdir()):
        results = {path.stem: json.loads(path.read_text()) for path in folder.glob("*.json")}
        machines = {f"{result['machine']['cpu']}, {result['machine']['cores']} cores"
                    for result in results.values()}
        print(f"\n`{folder.name}` ({'; '.join(sorted(machines))}):\n")
        print("| | ours | best PyTorch | times as fast | bfloat16: ours | PyTorch | times as fast |")
        print("|---|---|---|---|---|---|---|")
        for title, name, chosen, key in TASKS:
            rows = [row for row in results.get(name, {"rows": []})["rows"]
                    if all(row.get(k) == v for k, v in chosen.items())]
            if text := line(title, rows, key):
                print(text)
        if rows := results.get("sampler", {"rows": []})["rows"]:
            print("\n| pixel recursive pictures | ours | a pass for each sub-pixel | times as fast |")
            print("|---|---|---|---|")
        for row in rows:
            print(f"| {row['batch']} | {row['seconds']:.2f} s | {row['naive_seconds']:.0f} s "
                  f"| {row['speedup']:.0f} |")


if __name__ == "__main__":
    main()
