"""Takes orders, charges them and packs them: a small project that uses routilux."""
