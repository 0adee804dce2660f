# SPDX-License-Identifier: Apache-2.0
"""SQLModel: its engine is SQLAlchemy's.

``DATABASE_URL`` is postgresql+psycopg://…
"""

import os

from sqlmodel import Field, Session, SQLModel, create_engine, select

from sqlalchemy_pool_exporter import instrument


class Order(SQLModel, table=True):
    """What somebody ordered."""

    id: int | None = Field(default=None, primary_key=True)
    item: str


engine = create_engine(
    os.environ["DATABASE_URL"],
    pool_size=5,
    max_overflow=10,
    connect_args={"application_name": "orders"},
)
instrument(engine, name="orders")


def place(item: str) -> int:
    """Store an order, and return how many there are of the item."""
    with Session(engine) as session:
        session.add(Order(item=item))
        session.commit()
        return len(session.exec(select(Order).where(Order.item == item)).all())
