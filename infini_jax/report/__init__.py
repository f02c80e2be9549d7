"""Results as one self-contained HTML page, as figures for a paper, and as a table for the terminal.

Every sentence and number on the page is computed from the rows and figures of the studies; the same ones give the same page.

  found      results in the folders of one study or several
  tasks      score, chance and ceiling of tasks
  parts      figures that could be drawn, figures that could not, tables
  summary    the first screen: a verdict per task, and the score of every mechanism at every size
  looks      color, marker and dashes of each mechanism
  plots      what figures share, and the score against bytes
  dots       the score by name, of settings at one size
  sections   the page's section on one task: finding, score against bytes, numbers
  figures/   F1 to F11, one file per question
  tables     passkey in the papers' format, BLiMP by phenomenon
  settled    whether scores and orders still change between rungs of a ladder, and where rates stand
  limits     why nothing of a study is a conclusion, for the top of the page
  effects    effects of the factors of a study's design, and of two together
  slopes     change of the score with each doubling of memory
  parameters scores at equal bytes and equal parameters
  data       the runs behind a figure as comma-separated values
  trials     learning rates that were tried, and the one that was chosen
  verdicts   verdicts on the predictions
  checks     whether the ceiling reached the top and the floor stayed at chance
  page       the page itself
"""

from infini_jax.report.found import StudySource
from infini_jax.report.page import write_report
from infini_jax.report.terminal import terminal_table

__all__ = ["StudySource", "terminal_table", "write_report"]
