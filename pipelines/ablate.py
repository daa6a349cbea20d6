"""`nvg ablate`: the ablations of the paper's Table 2 at demo scale, with one budget for all variants.

Tokenizers, records, trainings and samples are files below one folder; whatever is finished is passed over, so that the
same command goes on where it was stopped.
"""

from pathlib import Path

import torch
from rich.console import Console
from rich.rule import Rule

from cluster.session import cluster_session
from pipelines.ablate.plan import AblateConfig, AblationPlan, make_plan
from pipelines.ablate.report import write_result
from pipelines.ablate.study import SampleScores, score_cell
from pipelines.ablate_queue import train_queue
from pipelines.evaluate.generator import load_data
from pipelines.precompute.job import precompute


def run_ablate(config: AblateConfig, *, console: Console | None = None) -> Path:
    """Run what is not finished yet.

    Args:
        config: the study.
        console: where headlines and progress are shown.

    Returns:
        The table, a Markdown file; numbers (JSON) and picture lie beside it.

    Raises:
        UserError: a step cannot be done; the message says what to change. Finished steps stay.
    """
    console = console or Console(stderr=True)
    plan = make_plan(config)
    folder = Path(config.folder).absolute()
    folder.mkdir(parents=True, exist_ok=True)
    _headline(console, f"{len(plan.tokenizers)} tokenizer(s)")
    train_queue(plan.tokenizers, num_parallel=config.num_parallel, console=console)
    _headline(console, f"{len(plan.records)} record sets")
    with cluster_session(config.session):
        for job in plan.records.values():
            precompute(job, console=console)
    _headline(console, f"{len(plan.trainings)} generators")
    train_queue(plan.trainings, num_parallel=config.num_parallel, console=console)
    _headline(console, f"scores of {len(plan.cells)} variants and seeds")
    table = _score(config, plan, folder, console)
    console.print(table.read_text(), markup=False, highlight=False, soft_wrap=True)
    return table


def _score(config: AblateConfig, plan: AblationPlan, folder: Path, console: Console) -> Path:
    threads = torch.get_num_threads()
    torch.set_num_threads(config.pool.threads_per_actor)  # as in the pool's workers, so that numbers repeat
    try:
        data = load_data(config.precompute.source)
        samples = SampleScores(config, plan, data, console)
        with cluster_session(config.session):
            cells = []
            for number, cell in enumerate(plan.cells, start=1):
                console.print(f"{number}/{len(plan.cells)} {cell.variant}, seed {cell.seed}", highlight=False)
                cells.append(score_cell(cell, plan, samples))
        return write_result(folder, cells, samples.reference(), _facts(config, plan))
    finally:
        torch.set_num_threads(threads)


def _facts(config: AblateConfig, plan: AblationPlan) -> dict[str, object]:
    content, structure, sampling = config.content, config.structure, config.sampling
    return {
        "images": f"{config.precompute.source.kind} {config.precompute.source.path or ''}".strip(),
        "seeds": ", ".join(map(str, config.seeds)),
        "content generators": f"depth {content.content.depth}, width {content.content.width}, "
        f"{content.optimizer.num_steps} steps of {content.optimizer.global_batch} images",
        "structure generators": f"depth {structure.structure.depth}, width {structure.structure.width}, "
        f"{structure.optimizer.num_steps} steps of {structure.optimizer.global_batch} images",
        "tokenizers": f"{' and '.join(plan.tokenizers)}, {config.tokenizer.optimizer.num_steps} steps each",
        "sampling": f"content guidance {sampling.content_guidance}, structure guidance {sampling.structure_guidance}"
        f"{', constant' if sampling.constant_guidance else ''}, top-p {sampling.top_p_last}, "
        f"{sampling.num_flow_steps} flow steps, {config.pool.num_samples} samples per variant and seed",
    }


def _headline(console: Console, text: str) -> None:
    console.print(Rule(text, align="left", style="dim"))
