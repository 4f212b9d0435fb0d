"""Measuring answers and rankings: tasks in, predictions of systems, scores with intervals out.

A model is reached only through ``system.AnswerModel``, and whatever it is compared with only through ``system.System``;
which model, which systems and which files is the command line's choice. What happens in order: ``questions`` reads a
task, ``systems`` builds a system, ``run`` asks it and keeps a journal, ``results`` scores, ``report`` writes.
"""
