"""How large the picture of an asset is, so that a list of them opens no file."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    for column in ("width_px", "height_px"):
        op.add_column("assets", sa.Column(column, sa.Integer(), nullable=True))


def downgrade() -> None:
    for column in ("height_px", "width_px"):
        op.drop_column("assets", column)
