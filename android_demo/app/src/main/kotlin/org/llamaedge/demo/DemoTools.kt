package org.llamaedge.demo

import android.content.Context
import android.os.BatteryManager
import java.text.SimpleDateFormat
import java.util.Date
import java.util.Locale
import java.util.TimeZone
import org.llamaedge.core.Tool

/** Two functions that the model may call; both read this phone and nothing else. */
class DemoTools(private val context: Context) {
    fun all(): List<Tool> = listOf(currentTime(), batteryLevel())

    private fun currentTime() = Tool(
        "current_time",
        "The date and time now, in a time zone",
        mapOf(
            "type" to "object",
            "properties" to mapOf("zone" to mapOf("type" to "string", "description" to "such as Europe/Paris; leave out for local")),
            "required" to emptyList<String>(),
        ),
    ) { arguments ->
        val id = arguments["zone"] as? String
        require(id == null || id in TimeZone.getAvailableIDs()) { "there is no time zone $id" }
        val format = SimpleDateFormat("yyyy-MM-dd HH:mm", Locale.ROOT)
        if (id != null) format.timeZone = TimeZone.getTimeZone(id)
        format.format(Date())
    }

    private fun batteryLevel() = Tool(
        "battery_level", "How full the battery of this phone is, in percent", mapOf("type" to "object", "properties" to emptyMap<String, Any?>()),
    ) {
        val battery = context.getSystemService(Context.BATTERY_SERVICE) as BatteryManager
        battery.getIntProperty(BatteryManager.BATTERY_PROPERTY_CAPACITY)
    }
}
