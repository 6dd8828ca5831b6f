"""The parts by name, in the order in which they run, each a module with `run(device, emit)`; and their time limits."""

#: Seconds that each part may take: eight minutes together.
PARTS = {
    "tests": 90,
    "exact": 40,
    "sanitizer": 70,
    "times": 120,
    "paper": 60,
    "service": 55,
    "tune": 45,
}
