"""Plans as code that others run: a script, conversions of transformers, a filter of timm, a mapper of vLLM.

Each export is a function from a Plan to the text of a Python file; what a form cannot hold is an ExportError.
"""

from automap.export.python import export_python as export_python
from automap.export.timm import export_timm as export_timm
from automap.export.transformers import export_transformers as export_transformers
from automap.export.vllm import export_vllm as export_vllm
