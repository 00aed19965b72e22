"""What a run displays and logs while it proceeds: the progress bar, the curves, pictures. It only watches."""
import time
import warnings
from collections.abc import Callable, Sequence

import numpy as np
import torch

from models.pruning import DEFAULT_THRESHOLD, prune
from utils.data_options import warn_of_absent
from utils.engine import Losses, Watcher
from utils.errors import InputWarning
from utils.metrics import Scores, scores
from utils.pictures import colour_label
from utils.progress import progress_bar
from utils.run import TrainingState
from utils.run_folder import RunFolder
from VOC12.transforms import denormalize

PICTURES = "pictures"
SHOWN_IMAGES = 4  # of the eval list, in TensorBoard
REFRESH_INTERVAL = 0.2  # seconds between two updates of the bar's figures; reading them waits for a GPU


class RunLog(Watcher):
    """Logs a search (searching) or a training in its folder.

    log_interval: iterations between two points of a curve; epoch_length: iterations of an epoch; class_names: given if
    the first epoch has to show whether all classes occur, since only a part of the labels was looked at before.
    """

    def __init__(self, folder: RunFolder, searching: bool, log_interval: int, epoch_length: int,
                 class_names: Sequence[str] | None = None):
        self.class_names = class_names
        self.folder, self.curves = folder, folder.curves
        self.searching, self.log_interval, self.epoch_length = searching, log_interval, epoch_length
        self.bar, self.refreshed_at = None, 0.0
        self.rate_tags = ("train/backbone_lr", "train/decoder_lr", "train/strengths_lr") if searching else \
                         ("train/base_lr", "train/last_layer_lr")

    def on_start(self, state: TrainingState) -> None:
        """The bar; of a new run the strengths at the start, or the architecture that is trained."""
        self.bar = progress_bar(total=state.schedule.iterations, initial=state.iteration,
                                desc="search" if self.searching else "train")
        if state.iteration == 0 and self.searching:
            self.curves.strengths(state.network.final_strengths(), 0)
        elif state.iteration == 0:
            self._draw_architecture("train/architecture", state, state.network.connectivity)

    def on_step(self, state: TrainingState, losses: Losses) -> None:
        """The bar, whose figures change a few times a second and at the end of an epoch, and the curves."""
        if state.iteration % self.log_interval == 0:
            self._add_points(state, losses)
        end_of_epoch = (state.iteration + state.shift) % self.epoch_length == 0
        if time.monotonic() - self.refreshed_at > REFRESH_INTERVAL or end_of_epoch:
            self.refreshed_at = time.monotonic()
            running = scores(state.train_confusion)
            m_iou = f"{100 * running.m_iou:.1f}%" if running.is_defined else "-"
            self.bar.set_postfix(refresh=False, loss=f"{losses.total.item():.3f}", mIoU=m_iou,
                                 lr=f"{state.optimizer.param_groups[0]['lr']:.2g}")
        self.bar.update()
        if end_of_epoch:
            self.bar.refresh()
            if self.class_names and state.iteration + state.shift == self.epoch_length:
                warn_of_absent(scores(state.train_confusion).absent, self.class_names)

    def _add_points(self, state: TrainingState, losses: Losses) -> None:
        """A point of each curve."""
        step = state.iteration
        self.curves.scalar("train/loss", losses.total.item(), step)
        if losses.sparse is not None:
            self.curves.strengths(state.network.final_strengths(), step)
            self.curves.scalar("train/loss_task", losses.task.item(), step)
            self.curves.scalar("train/loss_sparse", losses.sparse.item(), step)
            if state.cost_loss is not None:
                with torch.no_grad():
                    cost = state.cost_loss.expected_cost(state.network.clean_strengths())
                self.curves.scalar("train/cost", cost, step)
                self.curves.scalar("train/cost_weight", state.cost_loss.weight, step)
        for tag, group in zip(self.rate_tags, state.optimizer.param_groups, strict=True):
            self.curves.scalar(tag, group["lr"], step)
        running = scores(state.train_confusion)
        if running.is_defined:  # an epoch may begin with void alone
            self.curves.scalar("train/m_iou", running.m_iou, step)

    def on_eval_image(self, state: TrainingState, index: int, image: torch.Tensor, prediction: torch.Tensor,
                      label: torch.Tensor) -> None:
        """The first images, predictions and labels of the eval list as pictures; the very first has no number."""
        if index >= SHOWN_IMAGES:
            return
        number = f"_{index}" if index else ""
        classes = state.network.num_classes
        with self.curves.attempt(PICTURES):
            shown = denormalize(image[0], state.network.normalization)
            self.curves.image(f"val/input{number}", shown.cpu().numpy(), state.iteration)
            self.curves.image(f"val/output{number}", colour_label(prediction[0], classes), state.iteration)
            self.curves.image(f"val/gt{number}", colour_label(label[0], classes), state.iteration)

    def on_evaluation(self, state: TrainingState, epoch: int, result: Scores) -> None:
        """A line, the curves, and of a search the strengths."""
        if result.is_defined:
            self.curves.scalar("val/m_iou", result.m_iou, state.iteration)
        line = f"epoch {epoch}, iteration {state.iteration}: val mIoU {result.describe_m_iou()}"
        if self.searching:
            above, total = self._log_strengths(state)
            line += f", {above} of {total} strengths above {DEFAULT_THRESHOLD:g}"
        self.curves.histograms(state.network, state.iteration)
        self.folder.log(line)

    def _log_strengths(self, state: TrainingState) -> tuple[int, int]:
        """The strengths as curves and pictures. Returns how many are above the threshold, and how many there are."""
        strengths = state.network.final_strengths()
        values = np.concatenate([p.ravel() for p in strengths])
        above = int((values > DEFAULT_THRESHOLD).sum())
        self.curves.scalar("search/above_threshold", above, state.iteration)
        self.curves.histogram("search/strengths_histogram", values, state.iteration)
        self._draw("search/strengths", state, lambda drawing: drawing.draw_strengths(strengths))
        kept = prune(strengths)
        if kept[-1].any():  # else there is no network yet
            self._draw_architecture("search/architecture", state, kept)
        return above, len(values)

    def _draw_architecture(self, tag: str, state: TrainingState, connectivity: np.ndarray) -> None:
        network = state.network
        self._draw(tag, state, lambda drawing: drawing.draw_architecture(
            connectivity, network.backbone.channels, network.backbone.strides, network.depth, network.num_classes))

    def _draw(self, tag: str, state: TrainingState, draw: Callable) -> None:
        """draw(drawing module) -> figure, as a picture in TensorBoard."""
        with self.curves.attempt(PICTURES):
            from utils import drawing  # here, for matplotlib may be missing or broken
            self.curves.image(tag, drawing.to_array(draw(drawing)), state.iteration)

    def on_end(self, state: TrainingState) -> None:
        """Closes the bar."""
        self.bar.close()
        if state.finished and state.all_skipped:
            warnings.warn("the gradients overflowed in every step, so that nothing was learned: float16 needs some "
                          "steps until its loss scale fits; train longer, or in bfloat16", InputWarning, stacklevel=2)
