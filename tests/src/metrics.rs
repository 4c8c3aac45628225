//! Metrics as a collector received them, flattened for assertions. Only sums of integers: pitviper makes no others.

use std::collections::BTreeMap;

use opentelemetry_proto::tonic::collector::metrics::v1::ExportMetricsServiceRequest;
use opentelemetry_proto::tonic::metrics::v1::{metric::Data, number_data_point::Value};

use crate::spans::attributes;

/// A received data point.
#[derive(Clone, Debug)]
pub struct Point {
    /// The metric's name.
    pub name: String,
    /// The metric's unit.
    pub unit: String,
    /// Whether it can only grow.
    pub monotonic: bool,
    /// The value.
    pub value: i64,
    /// Its attributes; values that are not strings as text.
    pub attributes: BTreeMap<String, String>,
    /// The attributes of its resource.
    pub resource: BTreeMap<String, String>,
}

impl Point {
    /// An attribute's value, or the empty string.
    pub fn attribute(&self, key: &str) -> &str {
        self.attributes.get(key).map_or("", String::as_str)
    }
}

/// The latest point of each series of a metric.
pub fn latest<'a>(points: &'a [Point], name: &str) -> Vec<&'a Point> {
    let mut series = BTreeMap::new();
    for point in points.iter().filter(|point| point.name == name) {
        series.insert(&point.attributes, point);
    }
    series.into_values().collect()
}

/// The data points of one export request.
pub fn flatten(request: &ExportMetricsServiceRequest) -> Vec<Point> {
    let mut points = Vec::new();
    for group in &request.resource_metrics {
        let resource =
            group.resource.as_ref().map(|resource| attributes(&resource.attributes)).unwrap_or_default();
        for metric in group.scope_metrics.iter().flat_map(|scope| &scope.metrics) {
            let Some(Data::Sum(sum)) = &metric.data else { continue };
            for point in &sum.data_points {
                let Some(Value::AsInt(value)) = point.value else { continue };
                points.push(Point {
                    name: metric.name.clone(),
                    unit: metric.unit.clone(),
                    monotonic: sum.is_monotonic,
                    value,
                    attributes: attributes(&point.attributes),
                    resource: resource.clone(),
                });
            }
        }
    }
    points
}
