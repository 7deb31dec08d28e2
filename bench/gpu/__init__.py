"""Everything that a GPU has to show of this project, checked and measured by one command: python -m bench.gpu --help.

__main__.py   the command line                runner.py    sections one after the other, each in a process of its own
sections.py   which there are, and their worth             report.py    report.md of what was found
section.py    what a section is given         sizes.py     the product's sizes, and those of a rehearsal
clock.py      times of calls and of kernels   keep.py      where finished reports are kept

smoke.py (a)  suite.py (b)  ceilings.py (c)  kernel_times.py, candidates.py (d)  losses.py (e)
steps.py, part_times.py, recurrent_calls.py (f)  view_race.py (g)  training.py (h)  trace.py (i)
"""
