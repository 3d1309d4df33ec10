"""What can follow `python -m fastdiff` beside overrides."""

VERBS = {
    "plan": "print the ordered passes, or every problem with its way out",
    "doctor": "what this machine can and can't do",
}
