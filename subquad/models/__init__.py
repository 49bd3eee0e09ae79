"""Configuration, backbone, and a head for each task: ordinary transformers models, known to the Auto classes."""

from transformers import AutoConfig, AutoModel, AutoModelForCausalLM

from subquad.models.backbone import Block, SubquadModel, SubquadPreTrainedModel
from subquad.models.causal_lm import SubquadForCausalLM
from subquad.models.configuration import SubquadConfig

AutoConfig.register(SubquadConfig.model_type, SubquadConfig, exist_ok=True)
AutoModel.register(SubquadConfig, SubquadModel, exist_ok=True)
AutoModelForCausalLM.register(SubquadConfig, SubquadForCausalLM, exist_ok=True)

__all__ = ["Block", "SubquadConfig", "SubquadForCausalLM", "SubquadModel", "SubquadPreTrainedModel"]
