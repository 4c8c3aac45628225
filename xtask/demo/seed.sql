-- The sample shop's tables.
CREATE TABLE products (id int PRIMARY KEY, sku text NOT NULL UNIQUE, title text NOT NULL, price_cents int NOT NULL);
CREATE TABLE levels (sku text PRIMARY KEY REFERENCES products (sku), available int NOT NULL CHECK (available >= 0));
CREATE TABLE orders (id serial PRIMARY KEY, product_id int NOT NULL REFERENCES products, quantity int NOT NULL);

INSERT INTO products
SELECT n, 'sku-' || n, (ARRAY['Adder', 'Boa', 'Cobra', 'Mamba', 'Python', 'Viper'])[1 + n % 6] || ' no. ' || n, 100 * n
FROM generate_series(1, 20) n;
INSERT INTO levels SELECT sku, 100 FROM products;
