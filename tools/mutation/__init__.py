"""Mutation testing: single changes to the code, and whether a test notices them.

``places`` finds what can be changed, ``changes`` draws some of it, ``lines`` knows which tests
execute which lines, ``session`` runs tests in a process of its own, ``campaign`` judges the changes
one by one, and ``python -m tools.mutation`` puts them together; tests/README.md says how.
"""
