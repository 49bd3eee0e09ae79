"""Long Range Arena (Tay et al., 2021, arXiv 2011.04006): generators and readers of its tasks."""

from subquad.data.lra.listops import ListOpsLimits, evaluate_listops, generate_listops

__all__ = ["ListOpsLimits", "evaluate_listops", "generate_listops"]
