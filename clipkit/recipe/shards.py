"""The knobs of `clipkit shards reshard`, `merge` and `import`. They have options for each and no files."""

from pydantic import Field

from clipkit.recipe.section import Section


class ReshardRecipe(Section):
    """`clipkit shards reshard`: which pairs, in what order, how cut."""

    keep: str | None = Field(None, description="file with a column `key` of the pairs to keep; unset: all")
    drop: str | None = Field(None, description="file with a column `key` of the pairs to leave out, as `overlap-report` writes it")
    where: str | None = Field(None, description="condition that pairs must meet")
    pairs_per_shard: int | None = Field(None, ge=1, le=10**9, description="pairs per shard; unset: as the source")
    seed: int | None = Field(None, ge=0, lt=2**63, description="shuffles the pairs; unset: they stay in the source's order")


class MergeRecipe(Section):
    """`clipkit shards merge`: how the union is cut and ordered."""

    pairs_per_shard: int | None = Field(None, ge=1, le=10**9, description="pairs per shard; unset: as the first source")
    seed: int | None = Field(None, ge=0, lt=2**63, description="shuffles the pairs; unset: source after source")


class ImportRecipe(Section):
    """`clipkit shards import`: how what another program wrote is cut."""

    pairs_per_shard: int = Field(10_000, ge=1, le=10**9, description="pairs per shard")
