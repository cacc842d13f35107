"""Runs as the last step of a build: `check_gpu_code.py 12.0 ...` ends with an error where a library that every start
loads lacks code for one of these compute capabilities, and names it."""

import json
import os
import sys

FOLDER = os.path.dirname(os.path.abspath(__file__))


def problems(libraries, found, capabilities, runs):
    """One line per library and capability that do not go together.

    `libraries`: {name, files, only_on}, as in catalog/start_path.yml. `found`: {name, path, codes} for each of them.
    """
    lines = []
    for library in libraries:
        for wanted in capabilities:
            if wanted in library.get("only_on", [wanted]):
                files = [entry for entry in found if entry["name"] == library["name"]]
                lines += filter(None, (_problem(entry, wanted, runs) for entry in files))
    return lines


def _problem(entry, wanted, runs):
    name, path = entry["name"], entry["path"]
    if path is None:
        return f"{name} is not there, and capability {wanted} needs it"
    if entry.get("error"):
        return f"{name}: {path} cannot be read: {entry['error']}"
    if not runs(entry["codes"], wanted):
        return f"{name} has no code for capability {wanted}: {path} holds {', '.join(entry['codes']) or 'none'}"
    return None


def main():
    sys.path.insert(0, FOLDER)
    import cuda_fatbin
    import gpu_code

    with open(os.path.join(FOLDER, "libraries.json"), encoding="utf-8") as file:
        libraries = json.load(file)

    def runs(codes, wanted):
        return gpu_code.any_runs_on(codes, gpu_code.capability(wanted))

    own = [path for path in sys.path[1:] if os.path.isdir(path)]
    found = cuda_fatbin.find_libraries(list(dict.fromkeys(own + cuda_fatbin.python_roots())), libraries)
    lines = problems(libraries, found, sys.argv[1:], runs)
    print("\n".join(lines or [f"{entry['name']}: {' '.join(entry['codes']) or 'not there'}" for entry in found]))
    sys.exit(1 if lines else 0)


if __name__ == "__main__":
    main()
