"""Configuration, backbone, and a head for each task: ordinary transformers models, known to the Auto classes."""

from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForImageClassification,
    AutoModelForMaskedLM,
    AutoModelForSequenceClassification,
)

from subquad.models.backbone import Block, SubquadModel, SubquadPreTrainedModel
from subquad.models.causal_lm import SubquadForCausalLM
from subquad.models.classification import SubquadForImageClassification, SubquadForSequenceClassification
from subquad.models.configuration import SubquadConfig
from subquad.models.masked_lm import SubquadForMaskedLM

AutoConfig.register(SubquadConfig.model_type, SubquadConfig, exist_ok=True)
AutoModel.register(SubquadConfig, SubquadModel, exist_ok=True)
AutoModelForCausalLM.register(SubquadConfig, SubquadForCausalLM, exist_ok=True)
AutoModelForMaskedLM.register(SubquadConfig, SubquadForMaskedLM, exist_ok=True)
AutoModelForSequenceClassification.register(SubquadConfig, SubquadForSequenceClassification, exist_ok=True)
AutoModelForImageClassification.register(SubquadConfig, SubquadForImageClassification, exist_ok=True)

__all__ = [
    "Block",
    "SubquadConfig",
    "SubquadForCausalLM",
    "SubquadForImageClassification",
    "SubquadForMaskedLM",
    "SubquadForSequenceClassification",
    "SubquadModel",
    "SubquadPreTrainedModel",
]
