"""The joint model: no way from one modality into another's embedding; what is absent or withheld has no effect."""

from __future__ import annotations

import torch

from image_text.batches import PairBatch
from image_text.joint.model import JointModel, TableTower


def fuse(model: JointModel, batch: PairBatch, seen: torch.Tensor) -> torch.Tensor:
    return model.fuse(model.maps(batch.student), batch.tokens, batch.numbers, batch.categories, seen).logits


@torch.no_grad()
def test_embeddings_see_one_modality(model: JointModel, batch: PairBatch) -> None:
    image, report = model.embed_image(batch.student), model.embed_report(batch.tokens)
    table = model.embed_table(batch.numbers, batch.categories)
    for changed in (batch._replace(tokens=batch.tokens.flip(0)), batch._replace(numbers=batch.numbers + 1)):
        fuse(model, changed, torch.ones(6, 3, dtype=torch.bool))
        assert torch.equal(model.embed_image(changed.student), image)
    assert torch.equal(model.embed_report(batch.tokens), report)
    torch.testing.assert_close(table.norm(dim=1)[:2], torch.ones(2))
    assert not torch.allclose(table[0], table[1])


@torch.no_grad()
def test_what_is_not_seen_has_no_effect_on_the_grade(model: JointModel, batch: PairBatch) -> None:
    for place in range(3):
        seen = torch.ones(6, 3, dtype=torch.bool)
        seen[:, place] = False
        other = [
            batch._replace(student=torch.rand(6, 1, 48, 48)),
            batch._replace(tokens=torch.where(batch.tokens > 1, 9, batch.tokens)),
            batch._replace(numbers=batch.numbers * 2, categories=torch.where(batch.categories >= 0, 7, -1)),
        ][place]
        torch.testing.assert_close(fuse(model, batch, seen), fuse(model, other, seen), atol=1e-6, rtol=0)
        seen[:] = True
        assert not torch.allclose(fuse(model, batch, seen)[0], fuse(model, other, seen)[0], atol=1e-6)


@torch.no_grad()
def test_a_case_with_one_modality_alone_has_a_finite_grade(model: JointModel, batch: PairBatch) -> None:
    for place in range(3):
        seen = torch.zeros(6, 3, dtype=torch.bool)
        seen[:, place] = True
        assert fuse(model, batch, seen).isfinite().all()


def test_table_tower_tokens_and_gaps() -> None:
    tower = TableTower(2, 8, torch.tensor([10.0, 0.0]), torch.tensor([2.0, 1.0]))
    numbers = torch.tensor([[14.0, float("nan")], [float("nan"), float("nan")]])
    tokens, there = tower(numbers, torch.tensor([[-1, 5], [-1, -1]]))
    assert there.tolist() == [[True, True], [False, False]]
    torch.testing.assert_close(tokens[0, 0], 2 * tower.weight[0] + tower.bias[0])
    torch.testing.assert_close(tokens[0, 1], tower.values.weight[64 + 5] + tower.bias[1])
    assert float(tower.pooled(numbers, torch.full((2, 2), -1))[1].detach().abs().sum()) == 0
    assert tower.standardised(torch.tensor([[1000.0, 0.0]])).tolist() == [[5.0, 0.0]]
