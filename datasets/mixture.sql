-- Sources in given proportions
--
-- A weight of 0.25 keeps a quarter of a source's rows, one of 2.5 has every row twice and half of them three times.
-- Which rows these are is up to a hash of the id: another weight adds rows or takes some, and changes no others. A
-- source without a weight is left out. The second copy of the row `a` is called `a#1`.
--
-- Reads `pool` (id, source, and any other columns). Gives its columns.
WITH weights AS (
    SELECT column1 AS source, column2 AS weight
    FROM (VALUES ('math', 1.0), ('code', 2.5), ('general', 0.25))
),
copies AS (
    SELECT pool.*, weight, unnest(range(0, 1 + CAST(weight AS BIGINT))) AS copy
    FROM weights
    JOIN pool ON pool.source = weights.source
)
SELECT CASE copy WHEN 0 THEN id ELSE id || '#' || copy END AS id, * EXCEPT (id, weight, copy)
FROM copies
WHERE copy + hash_share(id, 'mixture') < weight
