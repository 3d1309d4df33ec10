"""What can follow `python -m fastdiff` beside overrides."""

VERBS = {
    "plan": "print the ordered passes, or every problem with its way out",
    "ladder": "run a document's experiments in its order, its figures beside ours",
    "compare": "two quoted lists of overrides or run folders, their calls taking turns",
    "resume": "go on with a sweep: its folder in outputs/sweeps/",
    "report": "a sweep's table, figures and page made anew from its folder",
    "recipe": "a shared file: check, show, diff, verify, export, save, schema",
    "diff-env": "two reports: what differs in machine, software, settings, choices",
    "doctor": "what this machine can and can't do",
}

SWEEPS = ("-m", "--multirun")
"""Flags that make a sweep of what stands beside them."""

RUNS = ("--run", "-r")
"""Flags that say what holds anyway: a single run."""
