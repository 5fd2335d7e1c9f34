"""The model parts that stages put into pretrained models, and the loader that puts them back when a model is read.

A graft is `torch` and `transformers` only: it knows no stage, no scheduler and no tracker, so a model made here loads
wherever this package is installed: after `import grafts`, `AutoModelForCausalLM.from_pretrained` reads grafted models.
`grafts.loader` reads and writes model directories; `apply` puts grafts on a model; the modules of a method hold it as
pure tensor functions, with a naive reference beside every fast path.
"""

from transformers import AutoConfig, AutoModelForCausalLM

from grafts.config import GraftedConfig
from grafts.graft import Graft, Sources
from grafts.model import GraftedForCausalLM, apply

__all__ = ["Graft", "GraftedConfig", "GraftedForCausalLM", "Sources", "apply"]

AutoConfig.register(GraftedConfig.model_type, GraftedConfig, exist_ok=True)
AutoModelForCausalLM.register(GraftedConfig, GraftedForCausalLM, exist_ok=True)
