"""The parts of the comparison of runs, see `subquad.evaluation.report`: its runs, its table, its page, its figures."""
