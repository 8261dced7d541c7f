"""Apply: weights come off disk into a state dict, a finished model goes back to disk, or a checkpoint streams through.

`apply_plan` reads and writes tensor by tensor, whatever the size; the others hold a whole state dict.
"""

from automap.apply.checkpoint import load_checkpoint as load_checkpoint
from automap.apply.checkpoint import load_into as load_into
from automap.apply.save import check_file as check_file
from automap.apply.save import check_folder as check_folder
from automap.apply.save import save_model as save_model
from automap.apply.save import save_state as save_state
from automap.apply.save import save_state_folder as save_state_folder
from automap.apply.save import written_atomically as written_atomically
from automap.apply.stream import AppliedSummary as AppliedSummary
from automap.apply.stream import Progress as Progress
from automap.apply.stream import apply_plan as apply_plan
